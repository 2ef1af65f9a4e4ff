package main

import (
	"os"
	"runtime/debug"
	"runtime/metrics"
	"time"
)

const (
	// gcPercent lets the heap grow to five times what is live before it is
	// collected: a proxy makes much garbage and keeps little, so this trades some
	// tens of megabytes for a tenth of the CPU.
	gcPercent = 400
	// mostGarbage bounds what that adds, in bytes: what the memory tier keeps is
	// live too, and a full one is hundreds of megabytes that cost no marking.
	mostGarbage = 256 << 20
	// leastPercent is kept however much is live.
	leastPercent = 25
	// tunedEvery is how often the target follows what is live.
	tunedEvery = 5 * time.Second
)

// tuneCollector chooses when the collector runs, for good. The environment's
// GOGC goes before. The memory limit is Caddy's doing: GOMEMLIMIT, else nine
// tenths of the cgroup's; near it the collector runs more often whatever is
// chosen here.
func tuneCollector() {
	if _, set := os.LookupEnv("GOGC"); set {
		return
	}
	debug.SetGCPercent(gcPercent)
	go func() {
		live := []metrics.Sample{{Name: "/gc/heap/live:bytes"}}
		chosen := gcPercent
		for range time.Tick(tunedEvery) {
			metrics.Read(live)
			if percent := percentFor(live[0].Value.Uint64()); percent != chosen {
				chosen = percent
				debug.SetGCPercent(percent)
			}
		}
	}()
}

// percentFor is the target for so many live bytes, in steps of a twentieth.
func percentFor(live uint64) int {
	percent := gcPercent
	if live > mostGarbage*100/gcPercent {
		percent = int(mostGarbage * 100 / live)
	}
	return max(leastPercent, percent/20*20)
}
