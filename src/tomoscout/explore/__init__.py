"""The hyperparameter search: studies, proposals, trials and their summary."""
