"""Tables and pages that people read: what every room that measures something writes its report with."""
