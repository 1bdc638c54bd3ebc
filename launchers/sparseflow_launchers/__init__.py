"""Entry points of sparseflow for many processes; the recipes and configurations lie beside this package."""
