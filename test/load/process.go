package main

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// process is a program under load.
type process struct {
	cmd   *exec.Cmd
	pid   int
	addr  string // of the site that is measured
	extra string // of a second site, that only authenticates
	admin string // path of the admin API's socket; empty: not Caddy
	tls   bool
	ended chan struct{} // closed when it has
	once  sync.Once
}

// gatewayCore is the last processor this program may use, or -1 if there is
// only one, or no taskset.
var gatewayCore = sync.OnceValue(func() int {
	var set unix.CPUSet
	if _, err := exec.LookPath("taskset"); err != nil || unix.SchedGetaffinity(0, &set) != nil || set.Count() < 2 {
		return -1
	}
	last := -1
	for i := range len(set) * 64 {
		if set.IsSet(i) {
			last = i
		}
	}
	return last
})

// pinning says in words who runs where.
func pinning() string {
	if core := gatewayCore(); core >= 0 {
		return fmt.Sprintf("gateways alone on core %d", core)
	}
	return "gateways and load on the same cores"
}

// onGatewayCore makes a command run on the gateways' core; the load, the
// upstream and the servers share the others. Where that can't be, all share all.
func onGatewayCore(name string, args ...string) *exec.Cmd {
	if core := gatewayCore(); core >= 0 {
		return exec.Command("taskset", append([]string{"-c", strconv.Itoa(core), name}, args...)...)
	}
	return exec.Command(name, args...)
}

// leaveGatewayCore keeps this program, and what it starts from now on, away
// from the gateways' core.
func leaveGatewayCore() error {
	core := gatewayCore()
	if core < 0 {
		return nil
	}
	var set unix.CPUSet
	if err := unix.SchedGetaffinity(0, &set); err != nil {
		return fmt.Errorf("asking for processors: %w", err)
	}
	set.Clear(core)
	threads, err := os.ReadDir("/proc/self/task")
	if err != nil {
		return err
	}
	for _, t := range threads {
		if id, err := strconv.Atoi(t.Name()); err == nil {
			if err := unix.SchedSetaffinity(id, &set); err != nil && !errors.Is(err, unix.ESRCH) {
				return fmt.Errorf("leaving processor %d: %w", core, err)
			}
		}
	}
	runtime.GOMAXPROCS(set.Count() + 1) // one of them waits in pause
	return nil
}

// launch starts a command and waits until it listens on addr.
func launch(ctx context.Context, cmd *exec.Cmd, addr string) (*process, error) {
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	p := &process{cmd: cmd, pid: cmd.Process.Pid, addr: addr, ended: make(chan struct{})}
	go func() {
		_ = cmd.Wait() // how it ended is of no interest
		close(p.ended)
	}()
	runningMu.Lock()
	running = append(running, p)
	runningMu.Unlock()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	ctx, cancel := context.WithTimeout(ctx, 2*time.Minute)
	defer cancel()
	for {
		if c, err := net.Dial("tcp", addr); err == nil {
			_ = c.Close()
			return p, nil
		}
		select {
		case <-tick.C:
		case <-p.ended:
			return nil, fmt.Errorf("%s ended at once", filepath.Base(cmd.Path))
		case <-ctx.Done():
			p.stop()
			return nil, fmt.Errorf("%s does not listen on %s", filepath.Base(cmd.Path), addr)
		}
	}
}

func (p *process) url() string {
	if p.tls {
		return "https://" + p.addr + "/"
	}
	return "http://" + p.addr + "/"
}

// running are the processes that were started, so that none outlives this one.
var (
	runningMu sync.Mutex
	running   []*process
)

func stopAll() {
	runningMu.Lock()
	defer runningMu.Unlock()
	for _, p := range running {
		p.stop()
	}
}

func (p *process) stop() {
	if p == nil {
		return
	}
	p.once.Do(func() {
		_ = p.cmd.Process.Signal(os.Interrupt)
		hung := time.AfterFunc(20*time.Second, func() { _ = p.cmd.Process.Kill() })
		defer hung.Stop()
		<-p.ended
	})
}

// cpu is the CPU time of a process and its children, in seconds.
func cpu(pid int) float64 {
	var ts unix.Timespec
	total := 0.0
	if unix.ClockGettime(int32(^pid)<<3|2, &ts) == nil { // the process's CPU clock: clock_getcpuclockid(3)
		total = float64(ts.Sec) + float64(ts.Nsec)/1e9
	}
	children, _ := os.ReadFile(fmt.Sprintf("/proc/%d/task/%d/children", pid, pid))
	for field := range strings.FieldsSeq(string(children)) {
		if child, err := strconv.Atoi(field); err == nil {
			total += cpu(child)
		}
	}
	return total
}

// resident is the process's memory in MiB, memory a part of it by its name in
// /proc/PID/status.
func (p *process) resident() float64 { return p.memory("VmRSS") }

func (p *process) memory(name string) float64 {
	text, _ := os.ReadFile(fmt.Sprintf("/proc/%d/status", p.pid))
	for line := range bytes.Lines(text) {
		if rest, ok := bytes.CutPrefix(line, []byte(name+":")); ok {
			kib, _ := strconv.ParseFloat(strings.TrimSuffix(strings.TrimSpace(string(rest)), " kB"), 64)
			return kib / 1024
		}
	}
	return 0
}

// counters are what a gateway counted since it started.
type counters struct {
	mallocs, bytes, gcs float64
	lookups             map[string]float64 // by labels
}

// ask asks the admin API.
func (p *process) ask(path string) (*http.Response, error) {
	client := http.Client{Transport: &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", p.admin)
	}}}
	return client.Get("http://" + adminHost + path)
}

// profiled writes what a process spends its time on, and what it allocates, for
// a while.
func (p *process) profiled(dir, name string, length time.Duration) error {
	for kind, path := range map[string]string{
		"cpu": fmt.Sprintf("/debug/pprof/profile?seconds=%d", max(1, int(length.Seconds())-1)), "allocs": "/debug/pprof/allocs",
	} {
		res, err := p.ask(path)
		if err != nil {
			return err
		}
		text, err := io.ReadAll(res.Body)
		if err = errors.Join(err, res.Body.Close(), os.WriteFile(filepath.Join(dir, strings.ReplaceAll(name, " ", "-")+"."+kind), text, 0o644)); err != nil {
			return err
		}
	}
	return nil
}

// counters asks the admin API. A program without one has none.
func (p *process) counters() (counters, error) {
	c := counters{lookups: map[string]float64{}}
	if p.admin == "" {
		return c, nil
	}
	res, err := p.ask("/metrics")
	if err != nil {
		return c, fmt.Errorf("asking for counters: %w", err)
	}
	defer res.Body.Close()
	for lines := bufio.NewScanner(res.Body); lines.Scan(); {
		name, text, _ := strings.Cut(lines.Text(), " ")
		value, err := strconv.ParseFloat(text, 64)
		if err != nil {
			continue
		}
		switch name {
		case "go_memstats_mallocs_total":
			c.mallocs = value
		case "go_memstats_alloc_bytes_total":
			c.bytes = value
		case "go_gc_duration_seconds_count":
			c.gcs = value
		}
		if labels, ok := strings.CutPrefix(name, "caddy_auth_lookups_total"); ok {
			c.lookups[labels] = value
		}
	}
	if c.mallocs == 0 {
		return c, fmt.Errorf("the admin API at %s has no Go counters", p.admin)
	}
	return c, nil
}
