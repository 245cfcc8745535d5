"""The prompt filter (sec. 3.2, Fig. 11): rules, near duplicates and the auditor."""
