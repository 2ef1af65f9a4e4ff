package auth

import "time"

// Node is a gateway that follows a store's journal, as the store knows it.
// Times are unix milliseconds by the store's clock. A gateway is a new node
// each time it starts.
type Node struct {
	ID           string
	Name         string // for people: its host and process
	Version      string
	StartedAt    int64
	HeartbeatAt  int64
	MaxStaleness time.Duration
	// Seq and Row are the journal row it has applied last; zero: none yet.
	Seq int64
	Row RowID
}

// nodeSlack covers what a heartbeat takes to be written.
const nodeSlack = 5 * time.Second

// HeartbeatEvery is how often, at least, a gateway says that it is there.
func HeartbeatEvery(maxStaleness time.Duration) time.Duration { return maxStaleness / 10 }

// LiveUntil is until when the node must be reckoned with: after it, what it
// has not confirmed since made it refuse by itself (design 4.6,
// Acknowledgement).
func (n *Node) LiveUntil() int64 {
	return n.HeartbeatAt + (n.MaxStaleness + HeartbeatEvery(n.MaxStaleness) + nodeSlack).Milliseconds()
}

// Live reports whether the node must be reckoned with at now, by the store's
// clock.
func (n *Node) Live(now int64) bool { return now <= n.LiveUntil() }
