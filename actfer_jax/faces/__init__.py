"""Face tools on the host: reading images, finding faces, and cutting views of them."""
