"""Scene of attacks: hospitals with real vaults, and the coordinator and the member that attack them."""
