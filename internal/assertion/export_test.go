package assertion

// Kept is how many assertions are kept for alike requests.
func (a *Asserter) Kept() (n int) {
	for i := range a.shards {
		n += len(a.shards[i].made)
	}
	return n
}
