"""What a run leaves for people: a run directory with its figures, adapters and one HTML page."""

from aggregator_service.reporting.page import report_html
from aggregator_service.reporting.records import from_record, to_record
from aggregator_service.reporting.run_directory import RunDirectory, read_rounds, read_run

__all__ = ["RunDirectory", "from_record", "read_rounds", "read_run", "report_html", "to_record"]
