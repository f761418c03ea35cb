"""A run as files of a recipe of Slipway's, or as a recipe of NeMo in YAML."""

from __future__ import annotations

from dataclasses import replace

from slipway.configs import Refusal, Resolved, Spec
from slipway.launch.own.donor import donor_of, with_class
from slipway.launch.own.recipe import draft
from slipway.launch.translate.written import Lost, Written


def recipe_files(spec: Spec, resolved: Resolved) -> Written:
    """The files of a recipe, one after the other; ``slipway new`` writes them where they are found."""
    given = replace(resolved, spec=spec, layout_given=True)
    made = draft(f"{spec.name.lower().replace('-', '_').replace('.', '_')}_copy", given, spec.name)
    lost = (
        [] if made.donor else [Lost("model", spec.model.name, "no recipe trains such a model: it is planned for only")]
    )
    return Written("".join(f"# {group}/{made.name}.yaml\n{text}\n" for group, text in made.texts.items()), lost)


def nemo(spec: Spec) -> Written:
    """A recipe of NeMo.

    Raises:
        Refusal: NeMo is not installed, or none of its classes that our recipes use trains the model.
    """
    from slipway.launch.cli.nemo import quiet, require_nemo

    require_nemo("translate --to nemo")
    donor = donor_of(spec.model)
    if donor is None:
        raise Refusal(f"no recipe of ours trains a model like {spec.model.name} with NeMo", "Translate to megatron-lm.")
    with quiet():
        from slipway.launch.export import dump
        from slipway.recipes.build import build

        model = spec.model
        if not model.nemo_config:  # the rules look up what the class fixes by the name of a model that has one
            model = replace(with_class(model, donor), name=donor.model.name)
        return Written(dump(build(replace(spec, model=model))))
