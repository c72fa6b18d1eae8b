"""Face tools on the host: reading pictures, finding faces, and cutting views of them."""
