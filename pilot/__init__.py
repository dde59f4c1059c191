"""What the pilot's daemons share: settings, logging, local RPC, credentials, the identity switch's near side."""
