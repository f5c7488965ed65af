"""The models and their objective: student, teacher, forecaster and losses."""
