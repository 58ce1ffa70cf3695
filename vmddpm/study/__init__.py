"""The reader study: readers judge real and synthetic images (paper, section IV-D).

`create` makes a study, `server` serves it, and `report` evaluates the answers. They are separate modules because
`server` needs neither torch nor matplotlib, and the others need no web server.
"""

from vmddpm.study.folder import Study, StudyError

__all__ = ["Study", "StudyError"]
