"""Names that recipes write and launchers and reports read. Imports nothing."""

RECORD = "slipway/recipe.json"  # in a folder: on resume NeMo moves the files of a run into run_N
BASE_RECORD = "slipway/base.json"  # in a folder of imported weights: the facts of their model
IMPORTED_FILES = "huggingface"  # folder of imported weights, with config.json and the tokenizer of their model
ADAPTER = "adapter_metadata.json"  # NeMo's, among the weights of a checkpoint that holds an adapter only
FAILURE = "slipway/failure.json"  # why the run ended, by the rank that failed first; removed at the next start
DAMAGED = "damaged"  # folder of checkpoints whose files differ from their checksums
HANG = "slipway/hang"  # folder of what the ranks did at a hang
LOCK = "slipway/lock"  # who trains in the folder now
DATA_TIME = "data_wait_s"
SAVE_TIME = "checkpoint_save_s"
PEAK_MEMORY = "peak_memory_gib"  # by torch's counters, of the fullest rank
STOP_AT = "SLIPWAY_STOP_AT"  # environment: Unix time at which a job saves and stops
STOPPED_EARLY = 75  # exit code of a job that saved and stopped before its last step (EX_TEMPFAIL)
OWNER = "SLIPWAY_OWNER"  # environment: PID:START of the command that the ranks belong to, on the same machine
