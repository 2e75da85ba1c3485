"""Verdicts on servers: which requests come back right, cut, empty, zero or foreign."""

from ebm_encode.doctor.diagnosis import Diagnosis, Finding
from ebm_encode.doctor.examine import examine

__all__ = ["Diagnosis", "Finding", "examine"]
