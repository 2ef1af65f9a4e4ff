package e2e

import (
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
)

// writeAllPython posts bodies with http.client, which writes a whole body before it
// reads, and prints each answer's status.
const writeAllPython = `
import http.client, sys
host, path, size, chunked, times = sys.argv[1], sys.argv[2], int(sys.argv[3]), sys.argv[4] == "true", int(sys.argv[5])
more = dict(h.split(": ") for h in sys.argv[6:])
part = b"x" * 65536
for _ in range(times):
    try:
        c = http.client.HTTPConnection(host, timeout=60)
        if chunked:
            c.request("POST", path, body=(part for _ in range(size // len(part))), encode_chunked=True, headers={"Transfer-Encoding": "chunked", **more})
        else:
            c.request("POST", path, body=b"x" * size, headers=more)
        r = c.getresponse()
        print(r.status, r.read()[:20].decode())
    except Exception as e:
        print("failed:", repr(e))
    c.close()
`

// writeAllNode does the same with Node's http.
const writeAllNode = `
const http = require('http')
const [host, path, size, chunked, times] = process.argv.slice(1)
const [name, port] = host.split(':')
const body = Buffer.alloc(Number(size), 'x')
async function once() {
  return new Promise(done => {
    const headers = chunked === 'true' ? {} : {'Content-Length': body.length}
    const r = http.request({host: name, port, path, method: 'POST', headers, agent: false}, res => {
      let text = ''
      res.on('data', d => text += d)
      res.on('end', () => done(res.statusCode + ' ' + text.slice(0, 20)))
      res.on('error', e => done('failed: ' + e))
    })
    r.on('error', e => done('failed: ' + e))
    for (let at = 0; at < body.length; at += 65536) r.write(body.subarray(at, at + 65536))
    r.end()
  })
}
(async () => { for (let i = 0; i < Number(times); i++) console.log(await once()) })()
`

// startNginx runs nginx before an address until the test ends. It takes bodies as
// they come (proxy_request_buffering off) or as a whole, below /whole/.
func startNginx(t *testing.T, to string) string {
	t.Helper()
	binary, err := exec.LookPath("nginx")
	if err != nil {
		binary = "/usr/sbin/nginx"
	}
	dir, addr := t.TempDir(), freeAddr(t)
	config := fmt.Sprintf(`daemon off; master_process off; pid %[1]s/pid; error_log %[1]s/error.log;
events {}
http {
	access_log off; client_max_body_size 100m;
	client_body_temp_path %[1]s/body; proxy_temp_path %[1]s/proxy; fastcgi_temp_path %[1]s/f; uwsgi_temp_path %[1]s/u; scgi_temp_path %[1]s/s;
	server {
		listen %[2]s;
		proxy_http_version 1.1;
		location / { proxy_pass http://%[3]s; proxy_request_buffering off; }
		location /whole/ { proxy_pass http://%[3]s; }
	}
}`, dir, addr, to)
	file := filepath.Join(dir, "nginx.conf")
	if err := os.WriteFile(file, []byte(config), 0o600); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(binary, "-c", file)
	cmd.Stderr = os.Stderr
	if err := cmd.Start(); err != nil {
		t.Fatal("nginx is not installed: make deps: ", err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait() // it was killed
	})
	eventually(t, "nginx listens", func() bool {
		conn, err := net.Dial("tcp", addr)
		return err == nil && conn.Close() == nil
	})
	return addr
}

// TestRefusals_Arrive: clients that write a whole body before they read receive the
// refusal, whoever stands between.
func TestRefusals_Arrive(t *testing.T) {
	front := freeAddr(t)
	o := options{}
	o.raw = `&(named) {
	auth {
		errors handle_errors
	}
}
http://{addr} {
	route /routes/* {
		auth {
			errors handle_errors
		}
	}
	auth_token /token
	route /named/* {
		invoke named
	}
	auth
	auth_require /scoped/* scope nobody:has
	reverse_proxy {upstream}
	handle_errors {
		auth_problem
	}
}
http://` + front + ` {
	reverse_proxy {addr}
}`
	g := start(t, o)
	direct := g.addr
	nginx := startNginx(t, direct)
	const mega = 1 << 20
	var asked, failed int
	// A busy machine may miss a few: what is broken misses all of a kind.
	want := func(name, out string, times int, status int) {
		t.Helper()
		before := failed
		defer func() {
			if failed-before == times {
				t.Errorf("%s: none arrived", name)
			}
		}()
		lines := strings.Split(strings.TrimSpace(out), "\n")
		if len(lines) != times {
			t.Errorf("%s: %d answers, want %d: %s", name, len(lines), times, out)
		}
		for _, line := range lines {
			if asked++; !strings.HasPrefix(line, strconv.Itoa(status)+" ") || !strings.Contains(line, `{"`) {
				failed++
				t.Logf("%s: %s", name, line)
			}
		}
	}
	hosts := []struct{ name, addr, path string }{
		{"direct", direct, "/"},
		{"an error route", direct, "/routes/"},
		{"a named route", direct, "/named/"},
		{"nginx", nginx, "/"},
		{"nginx that reads bodies first", nginx, "/whole/"},
		{"Caddy", front, "/"},
	}
	const times = 10
	key := "X-API-Key: " + g.plainKey()
	for _, c := range []struct {
		name, path string
		status     int
		headers    []string
	}{
		{"a key in the query", "/?api_key=1", 400, nil},
		{"a bad key", "/", 401, []string{"X-API-Key: bad"}},
		{"a scope that lacks", "/scoped/", 403, []string{key}},
		{"early data", "/", 425, []string{key, "Early-Data: 1"}},
		{"no form", "/token", 400, []string{"Content-Type: application/json"}},
		{"a form that is too big", "/token", 413, []string{"Content-Type: application/x-www-form-urlencoded"}},
		{"a key in the URL of an endpoint", "/token?api_key=1", 400, nil},
	} {
		for _, chunked := range []string{"false", "true"} {
			out, err := exec.Command("python3", append([]string{"-c", writeAllPython, direct, c.path, strconv.Itoa(5 * mega), chunked, strconv.Itoa(times)}, c.headers...)...).CombinedOutput()
			if err != nil {
				t.Fatalf("%v: %s", err, out)
			}
			want(c.name+", chunked "+chunked, string(out), times, c.status)
		}
	}
	out, err := exec.Command("curl", "-sS", "-w", "\n%{http_code} {\"", "-o", "/dev/null", "-H", "Expect:", "--data-binary", "@"+fileOf(t, 50*mega), "http://"+direct+"/").CombinedOutput()
	want("curl", string(out), 1, 401)
	if err != nil {
		t.Errorf("curl: %v: %s", err, out)
	}
	for _, host := range hosts {
		for _, size := range []int{mega, 5 * mega, 50 * mega} {
			for _, chunked := range []bool{false, true} {
				n := times
				if size == 50*mega {
					n = 4
				}
				args := []string{host.addr, host.path, strconv.Itoa(size), strconv.FormatBool(chunked), strconv.Itoa(n)}
				name := fmt.Sprintf("%s, %d MB, chunked %v", host.name, size/mega, chunked)
				for _, client := range []struct{ name, bin, flag, program string }{{"http.client", "python3", "-c", writeAllPython}, {"node", "node", "-e", writeAllNode}} {
					out, err := exec.Command(client.bin, append([]string{client.flag, client.program}, args...)...).CombinedOutput()
					if err != nil {
						t.Fatalf("%s: %v: %s", client.name, err, out)
					}
					want(client.name+" "+name, string(out), n, 401)
				}
			}
		}
	}
	t.Logf("%d of %d failed", failed, asked)
	if failed*10 > asked {
		t.Errorf("%d of %d refusals did not arrive", failed, asked)
	}
}

// fileOf is a file of so many bytes.
func fileOf(t *testing.T, size int) string {
	t.Helper()
	name := filepath.Join(t.TempDir(), "body")
	if err := os.WriteFile(name, make([]byte, size), 0o600); err != nil {
		t.Fatal(err)
	}
	return name
}
