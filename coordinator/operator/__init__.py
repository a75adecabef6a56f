"""The operator's commands: servers, enrolment of sites, runs and reports."""
