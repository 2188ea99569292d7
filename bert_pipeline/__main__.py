"""`python -m bert_pipeline` is `bertpipe`; launchers of several processes need a module."""

from bert_pipeline.cli import main

if __name__ == "__main__":
    main()
