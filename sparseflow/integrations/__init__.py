"""Other people's formats and libraries."""

from sparseflow.integrations import cerebras as cerebras
