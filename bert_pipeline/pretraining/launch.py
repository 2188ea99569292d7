"""Start pretraining in this process, or in several; light to import."""

from bert_pipeline.pretraining.config import PretrainConfig
from bert_pipeline.training.launch import run_distributed

ENTRY = "bert_pipeline.pretraining.pretrain:pretrain"


def run_pretrain(config: PretrainConfig) -> None:
    """Pretrain in `num_processes` processes, unless a launcher has started this one."""
    run_distributed(ENTRY, config)
