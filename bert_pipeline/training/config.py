"""x"""
from bert_pipeline.config import StageConfig
class PretrainConfig(StageConfig):
    """x"""
