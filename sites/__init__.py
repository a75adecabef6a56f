"""The hospital: the ClientApp, the vault and the `fedpp-site` command."""
