"""bertpipe: from raw text to a pretrained BERT."""
