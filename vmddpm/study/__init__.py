"""The reader study: judges of real and synthetic images, their answers, and what these say (paper, section IV-D).

`create` makes a study, `server` shows it, `report` tells what the answers say; a module each, as `server` needs neither
torch nor matplotlib, and the others no server.
"""

from vmddpm.study.folder import Study, StudyError

__all__ = ["Study", "StudyError"]
