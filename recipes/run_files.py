"""Names of what a run leaves behind: written by recipes, read by reports. Imports nothing."""

RECORD = "slipway/recipe.json"  # in a folder: on resume NeMo moves the files of a run into run_N
SAVE_TIME = "checkpoint_save_s"
PEAK_MEMORY = "peak_memory_gib"  # by torch's counters, of the rank that logs
