"""Other people's formats and libraries."""

from sparseflow.integrations import cerebras as cerebras
from sparseflow.integrations.masked_state import load_masked as load_masked
from sparseflow.integrations.masked_state import read_masked as read_masked
