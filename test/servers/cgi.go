package servers

import (
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
)

// run starts a program that ends with the test and waits until it listens.
func run(t testing.TB, network, addr, name string, args ...string) {
	t.Helper()
	if _, err := exec.LookPath(name); err != nil {
		name = filepath.Join("/usr/sbin", name) // not on everybody's path
	}
	cmd := exec.Command(name, args...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL, Setpgid: true}
	if err := cmd.Start(); err != nil {
		t.Fatalf("%s: %v (test/deps.sh installs it)", name, err)
	}
	t.Cleanup(func() {
		_ = syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) // with its children
		_ = cmd.Wait()
	})
	Eventually(t, name+" listens", func() bool {
		c, err := (&net.Dialer{}).DialContext(context.Background(), network, addr)
		return err == nil && c.Close() == nil
	})
}

func write(t testing.TB, path, text string, mode os.FileMode) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), mode); err != nil {
		t.Fatal(err)
	}
}

// StartWSGI runs Python's own WSGI server with an application that answers
// with its environ as JSON.
func StartWSGI(t testing.TB) (addr string) {
	t.Helper()
	addr = SpareAddr(t)
	_, port, _ := net.SplitHostPort(addr)
	app := filepath.Join(t.TempDir(), "app.py")
	write(t, app, `import json, sys
from wsgiref.simple_server import make_server, WSGIRequestHandler

def app(environ, start_response):
    start_response("200 OK", [("Content-Type", "application/json")])
    return [json.dumps({k: v for k, v in environ.items() if isinstance(v, str)}).encode()]

class Quiet(WSGIRequestHandler):
    def log_message(self, *args):
        pass

make_server("127.0.0.1", int(sys.argv[1]), app, handler_class=Quiet).serve_forever()
`, 0o600)
	run(t, "tcp", addr, "python3", app, port)
	return addr
}

// StartPHP runs PHP-FPM. root holds index.php, which answers with $_SERVER as
// JSON.
func StartPHP(t testing.TB) (socket, root string) {
	t.Helper()
	found, _ := filepath.Glob("/usr/sbin/php-fpm*")
	if len(found) == 0 {
		t.Fatal("no php-fpm (test/deps.sh installs it)")
	}
	dir := shortDir(t)
	socket, root = filepath.Join(dir, "fpm.sock"), filepath.Join(dir, "www")
	if err := os.Mkdir(root, 0o755); err != nil {
		t.Fatal(err)
	}
	write(t, filepath.Join(root, "index.php"), `<?php header('Content-Type: application/json'); echo json_encode(array_filter($_SERVER, 'is_string'));`, 0o644)
	conf := filepath.Join(dir, "fpm.conf")
	write(t, conf, fmt.Sprintf("[global]\nerror_log = %[1]s/fpm.log\ndaemonize = no\n[www]\nuser = root\ngroup = root\nlisten = %[2]s\npm = static\npm.max_children = 1\n", dir, socket), 0o600)
	args := []string{"-F", "-y", conf}
	if os.Getuid() == 0 {
		args = append(args, "-R")
	}
	run(t, "unix", socket, found[0], args...)
	return socket, root
}

// StartCGI runs fcgiwrap, which runs CGI programs. program answers with its
// environment, a variable a line.
func StartCGI(t testing.TB) (socket, program string) {
	t.Helper()
	dir := shortDir(t)
	socket, program = filepath.Join(dir, "cgi.sock"), filepath.Join(dir, "env.cgi")
	write(t, program, "#!/bin/sh\nprintf 'Content-Type: text/plain\\r\\n\\r\\n'\nenv\n", 0o755)
	run(t, "unix", socket, "fcgiwrap", "-s", "unix:"+socket)
	return socket, program
}

// shortDir is a directory whose name leaves room for a socket's.
func shortDir(t testing.TB) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "ca")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	return dir
}
