"""Builds a knowledge task: chooses articles, has a model ask about them, and writes rows."""

from sdft.tasks.knowledge.articles import ARTICLES, choose_articles
from sdft.tasks.knowledge.questions import QUESTIONS, ask_questions, write_splits

__all__ = ["ARTICLES", "QUESTIONS", "ask_questions", "choose_articles", "write_splits"]
