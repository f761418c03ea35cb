"""Will it fit, is it legal, how fast will it be. Pure Python and NumPy; imports configs, never torch or NeMo."""

from slipway.planner.check import Verdict, check, require_fit, too_large
from slipway.planner.choose import TIE, choose_layout, complete, nearest_good, tie_groups
from slipway.planner.cost import Cost, cost, cost_of_seconds
from slipway.planner.course import Course, course
from slipway.planner.flops import model_flops_per_token, peak_tflops
from slipway.planner.goodput import TRIALS, WORTH_SAVING, Goodput, goodput, save_minutes
from slipway.planner.parameters import parameters
from slipway.planner.performance import fastest
from slipway.planner.pins import plan_pinned, plan_precisions
from slipway.planner.rules import RULES, Framework, Violation, is_legal, only_planned, require_legal, violations
from slipway.planner.search import Candidate, Plan, plan, why_slower
from slipway.planner.time.step import step_time
from slipway.planner.to_json import as_json, cost_json, course_json, goodput_json, layout_json

__all__ = [
    "RULES",
    "TIE",
    "TRIALS",
    "WORTH_SAVING",
    "Candidate",
    "Cost",
    "Course",
    "Framework",
    "Goodput",
    "Plan",
    "Verdict",
    "Violation",
    "as_json",
    "check",
    "choose_layout",
    "complete",
    "cost",
    "cost_json",
    "cost_of_seconds",
    "course",
    "course_json",
    "fastest",
    "goodput",
    "goodput_json",
    "is_legal",
    "layout_json",
    "model_flops_per_token",
    "nearest_good",
    "parameters",
    "peak_tflops",
    "plan",
    "plan_pinned",
    "plan_precisions",
    "only_planned",
    "require_fit",
    "require_legal",
    "save_minutes",
    "step_time",
    "tie_groups",
    "too_large",
    "violations",
    "why_slower",
]
