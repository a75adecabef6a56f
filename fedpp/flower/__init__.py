"""Flower adapters: everything that patches or imports Flower's private modules."""
