"""What the catalog knows of each noun: plain records, made only by the catalog."""
