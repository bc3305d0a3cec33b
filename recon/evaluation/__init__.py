"""From a trained model to one record per image, a workbook and pictures."""
