"""SGLang: our placement of experts in the shapes of its expert location metadata."""
