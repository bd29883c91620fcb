"""A knowledge task from articles: chosen from a dump, asked about by a model, written as rows."""

from sdft.tasks.knowledge.articles import ARTICLES, choose_articles
from sdft.tasks.knowledge.questions import QUESTIONS, ask_questions, write_splits

__all__ = ["ARTICLES", "QUESTIONS", "ask_questions", "choose_articles", "write_splits"]
