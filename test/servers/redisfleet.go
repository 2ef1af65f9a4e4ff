package servers

import (
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/redis/go-redis/v9"
)

// Sentinels are a Redis master, its replica, and three sentinels that watch
// them.
type Sentinels struct {
	Addrs           []string // of the sentinels
	Master, Replica *Redis   // as they were at the start
	t               testing.TB
}

// SentinelMaster is what the sentinels call the master.
const SentinelMaster = "gateways"

// StartSentinels runs them until the test ends.
func StartSentinels(t testing.TB) *Sentinels {
	t.Helper()
	s := &Sentinels{t: t, Master: StartRedis(t)}
	host, port, _ := net.SplitHostPort(s.Master.Addr)
	s.Replica = StartRedis(t, "--replicaof", host+" "+port)
	for range 3 {
		addr := SpareAddr(t)
		_, p, _ := net.SplitHostPort(addr)
		dir := t.TempDir()
		conf := filepath.Join(dir, "sentinel.conf")
		text := fmt.Sprintf("port %s\nbind 127.0.0.1\ndir %s\nlogfile %s/log\nsentinel monitor %[4]s %[5]s %[6]s 2\nsentinel down-after-milliseconds %[4]s 500\nsentinel failover-timeout %[4]s 3000\n",
			p, dir, dir, SentinelMaster, host, port)
		if err := os.WriteFile(conf, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		cmd := exec.Command("redis-server", conf, "--sentinel")
		cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })
		s.Addrs = append(s.Addrs, addr)
	}
	Eventually(t, "the sentinels know each other and the replica", func() bool {
		for _, a := range s.Addrs {
			info := s.ask(a)
			if info["num-other-sentinels"] != "2" || info["num-slaves"] != "1" {
				return false
			}
		}
		return true
	})
	Eventually(t, "the replica follows", func() bool {
		return strings.Contains(s.Replica.Admin.Info(context.Background(), "replication").Val(), "master_link_status:up")
	})
	return s
}

func (s *Sentinels) ask(addr string) map[string]string {
	c := redis.NewSentinelClient(&redis.Options{Addr: addr})
	defer c.Close()
	return c.Master(context.Background(), SentinelMaster).Val()
}

// Now is the address of the master, as the sentinels see it.
func (s *Sentinels) Now() string {
	info := s.ask(s.Addrs[0])
	return net.JoinHostPort(info["ip"], info["port"])
}

// Cluster is a Redis Cluster of three masters.
type Cluster struct {
	Nodes []*Redis
	t     testing.TB
}

// StartCluster runs one until the test ends, with more arguments for each
// server.
func StartCluster(t testing.TB, args ...string) *Cluster {
	t.Helper()
	c := &Cluster{t: t}
	var addrs []string
	for range 3 {
		bus := SpareAddr(t)
		_, port, _ := net.SplitHostPort(bus)
		r := StartRedis(t, append([]string{"--cluster-enabled", "yes", "--cluster-node-timeout", "2000", "--cluster-port", port, "--cluster-require-full-coverage", "no"}, args...)...)
		c.Nodes = append(c.Nodes, r)
		addrs = append(addrs, r.Addr)
	}
	c.cli(append(append([]string{"--cluster", "create"}, addrs...), "--cluster-yes")...)
	Eventually(t, "the cluster is there", func() bool {
		for _, r := range c.Nodes {
			if !strings.Contains(r.Admin.ClusterInfo(context.Background()).Val(), "cluster_state:ok") {
				return false
			}
		}
		return true
	})
	return c
}

func (c *Cluster) cli(args ...string) {
	c.t.Helper()
	if out, err := exec.Command("redis-cli", args...).CombinedOutput(); err != nil {
		c.t.Fatalf("redis-cli %s: %v: %s", strings.Join(args, " "), err, out)
	}
}

// Addrs are the nodes' addresses.
func (c *Cluster) Addrs() []string {
	var out []string
	for _, r := range c.Nodes {
		out = append(out, r.Addr)
	}
	return out
}

// Reshard moves slots from one node to another while they are used.
func (c *Cluster) Reshard(from, to, slots int) {
	c.t.Helper()
	id := func(n int) string { return c.Nodes[n].Admin.ClusterMyID(context.Background()).Val() }
	c.cli("--cluster", "reshard", c.Nodes[0].Addr, "--cluster-from", id(from), "--cluster-to", id(to), "--cluster-slots", fmt.Sprint(slots), "--cluster-yes", "--cluster-timeout", "5000")
}
