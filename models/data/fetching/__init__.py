"""Getting data sets from the Hugging Face hub, in the public file layouts that the readers take."""

from models.data.fetching.fetch import Outcome, fetch
from models.data.fetching.hub import INSTALL, downloaded, is_installed
from models.data.fetching.source import MISSING, Source
from models.data.fetching.sources import SOURCES

__all__ = ["INSTALL", "MISSING", "SOURCES", "Outcome", "Source", "downloaded", "fetch", "is_installed"]
