package routes

import (
	"strings"
	"testing"
)

const proxy = `{"handler":"reverse_proxy","upstreams":[{"dial":"127.0.0.1:9000"}]}`

func read(t *testing.T, servers string) []Answer {
	t.Helper()
	out, err := Read([]byte(`{"servers":` + servers + `}`))
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// gaps are those of the proxies of one server with these routes.
func gaps(t *testing.T, routes string) (out []string) {
	t.Helper()
	for _, a := range read(t, `{"srv0":{"listen":[":443"],"routes":[`+routes+`]}}`) {
		if a.Proxies() {
			out = append(out, a.Gap())
		}
	}
	return out
}

func TestGap(t *testing.T) {
	auth := `{"handler":"auth"}`
	sub := func(routes string) string { return `{"handler":"subroute","routes":[` + routes + `]}` }
	path := func(p, handle string) string { return `{"match":[{"path":["` + p + `"]}],"handle":[` + handle + `]}` }
	group := func(p, handle string) string {
		match := ""
		if p != "" {
			match = `"match":[{"path":["` + p + `"]}],`
		}
		return `{"group":"g",` + match + `"handle":[` + handle + `]}`
	}
	all := func(handle string) string { return `{"handle":[` + handle + `]}` }
	const open = "there is no auth"
	for name, c := range map[string]struct {
		routes string
		want   string // the gap of the one proxy begins so; empty: none
	}{
		"auth before it":                    {all(auth) + "," + all(proxy), ""},
		"in the same route":                 {all(auth + "," + proxy), ""},
		"auth behind it":                    {all(proxy + "," + auth), open},
		"no auth":                           {all(proxy), open},
		"auth in another handle":            {group("/a/*", sub(all(auth))) + "," + group("", sub(all(proxy))), open},
		"auth in the same handle":           {group("/a/*", sub(all(auth)+","+all(proxy))), ""},
		"auth in a route before":            {all(sub(all(auth))) + "," + all(proxy), ""},
		"auth for less":                     {path("/a/*", auth) + "," + all(proxy), "auth sees only requests with path /a/*"},
		"auth for the same":                 {path("/a/*", auth) + "," + path("/a/*", proxy), ""},
		"auth for more":                     {path("/a/*", auth) + "," + path("/a/b/*", proxy), ""},
		"auth for all, in words":            {path("/*", auth) + "," + all(proxy), ""},
		"auth for other paths":              {path("/a/*", auth) + "," + path("/ab", proxy), "auth sees only"},
		"public /*":                         {all(`{"handler":"auth","public":[{"paths":["/x","/*"]}]}`) + "," + all(proxy), "public /* lets"},
		"public /* of a method":             {all(`{"handler":"auth","public":[{"methods":["GET"],"paths":["/*"]}]}`) + "," + all(proxy), ""},
		"optional":                          {all(`{"handler":"auth","optional":true}`) + "," + all(proxy), ""},
		"auth_login":                        {all(`{"handler":"auth_login"}`) + "," + all(proxy), ""},
		"basic auth":                        {all(`{"handler":"authentication","providers":{"http_basic":{}}}`) + "," + all(proxy), ""},
		"forward_auth":                      {all(`{"handler":"reverse_proxy","rewrite":{"method":"GET","uri":"/check"},"handle_response":[{"match":{"status_code":[2]}}]}`) + "," + all(proxy), ""},
		"a proxy that looks at answers":     {all(`{"handler":"reverse_proxy","handle_response":[{}]}`), open},
		"a site":                            {`{"match":[{"host":["a.example"]}],"terminal":true,"handle":[` + sub(all(auth)+","+all(proxy)) + `]}`, ""},
		"the auth of another site":          {`{"match":[{"host":["a.example"]}],"terminal":true,"handle":[` + sub(all(auth)) + `]},{"match":[{"host":["b.example"]}],"handle":[` + proxy + `]}`, open},
		"auth for a host":                   {`{"match":[{"host":["a.example"]}],"handle":[` + auth + `]},` + all(proxy), "auth sees only requests with host a.example"},
		"auth for a method, proxy for both": {`{"match":[{"method":["GET"]}],"handle":[` + auth + `]},{"match":[{"method":["GET"],"path":["/a"]}],"handle":[` + proxy + `]}`, ""},
		"one of two sets":                   {path("/a", auth) + `,{"match":[{"path":["/a"]},{"path":["/b"]}],"handle":[` + proxy + `]}`, "auth sees only"},
		"a handle before that of auth":      {group("/open/*", `{"handler":"headers"}`) + "," + group("", sub(all(auth))) + "," + all(proxy), "auth sees only requests with none of path /open/*"},
		"a rewrite between":                 {path("/api/*", auth) + "," + all(`{"handler":"rewrite","uri":"/api{http.request.uri}"}`) + "," + path("/api/*", proxy), "auth sees only requests with path /api/*"},
		"a rewrite in auth's own site":      {`{"match":[{"host":["a.example"]}],"terminal":true,"handle":[` + sub(all(auth)+","+all(`{"handler":"rewrite","uri":"/x"}`)+","+all(proxy)) + `]}`, ""},
		"a rewrite in auth's own handle":    {path("/api/*", sub(all(auth)+","+all(`{"handler":"rewrite","strip_path_prefix":"/api"}`)+","+all(proxy))), ""},
		"a rewrite and a host":              {`{"match":[{"host":["a.example"]}],"handle":[` + auth + `]},` + all(`{"handler":"rewrite","uri":"/x"}`) + `,{"match":[{"host":["a.example"]}],"handle":[` + proxy + `]}`, ""},
		"a rewrite behind auth for all":     {all(auth) + "," + all(`{"handler":"rewrite","uri":"/x"}`) + "," + all(proxy), ""},
		"a proxy that rewrites":             {all(`{"handler":"reverse_proxy","rewrite":{"uri":"/pre"},"handle_response":[{"match":{"status_code":[5]}}]}`), open},
		"a proxy in a handled response":     {all(`{"handler":"intercept","handle_response":[{"routes":[` + all(proxy) + `]}]}`), open},
		"a second auth closes the gap":      {path("/a/*", auth) + "," + all(auth) + "," + all(proxy), ""},
	} {
		got := gaps(t, c.routes)
		if len(got) != 1 || (got[0] == "") != (c.want == "") || !strings.HasPrefix(got[0], c.want) {
			t.Errorf("%s: %q, want %q", name, got, c.want)
		}
	}
	if got := gaps(t, all(`{"handler":"static_response"}`)+","+all(proxy)); len(got) != 0 {
		t.Errorf("what is never reached: %q", got)
	}
}

func TestRead(t *testing.T) {
	got := read(t, `{
		"b": {"listen":[":80"],"routes":[{"handle":[{"handler":"invoke","name":"n"}]}],"named_routes":{"n":{"handle":[`+proxy+`]}}},
		"a": {"listen":[":443"],"routes":[{"match":[{"host":["x.example"]}],"terminal":true,"handle":[{"handler":"subroute","routes":[
			{"match":[{"path":["/api/*","/b"],"method":["GET"]},{"not":[{"path":["/c"]}]}],"handle":[{"handler":"auth"},`+proxy+`]},
			{"handle":[{"handler":"file_server"}]}]}]}]}}`)
	if len(got) != 3 {
		t.Fatalf("%+v", got)
	}
	a := got[0]
	if a.Server != "a" || strings.Join(a.Hosts, " ") != "x.example" || a.Match != `method GET, path /api/* /b or not [{"path":["/c"]}]` ||
		strings.Join(a.Upstreams, " ") != "127.0.0.1:9000" || a.At != "a/routes/0/handle/0/routes/0/handle/1" || len(a.Guards) != 1 || a.Guards[0].Handler != "auth" {
		t.Errorf("%+v", a)
	}
	if got[1].Handler != "file_server" || got[1].Proxies() || got[1].Guards != nil && got[1].Guards[0].Only == "" {
		t.Errorf("%+v", got[1])
	}
	if got[2].At != "b/named_routes/n/0/handle/0" || got[2].Gap() == "" {
		t.Errorf("%+v", got[2])
	}
	for name, text := range map[string]string{
		"no JSON":          `{"servers":`,
		"a route for ever": `{"servers":{"a":{"routes":[{"handle":[{"handler":"invoke","name":"n"}]}],"named_routes":{"n":{"handle":[{"handler":"invoke","name":"n"}]}}}}}`,
	} {
		if _, err := Read([]byte(text)); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
}
