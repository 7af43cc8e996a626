"""Pure functions of arrays that compile: labelling, lesion table, scores, resampling, losses."""
