"""Methods against artifacts: `itae`. A method's reference and its graph form share only its options."""
