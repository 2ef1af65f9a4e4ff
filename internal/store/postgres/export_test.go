package postgres

// AcceptAnyServer leaves out the check that a connection is to a primary.
func (b *Backend) AcceptAnyServer() { b.config.ValidateConnect = nil }
