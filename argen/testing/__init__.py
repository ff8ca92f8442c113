"""An oracle for authors of strategies: tabulated generators and enumerated distributions."""
