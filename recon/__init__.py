"""Everything the scripts share: settings, models, objectives, data, training, evaluation."""
