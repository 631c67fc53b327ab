"""Reports: the ledger in; tables, figures and pages out."""
