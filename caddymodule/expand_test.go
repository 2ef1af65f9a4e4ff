package caddymodule

import (
	"strings"
	"testing"
)

func TestExpandAll(t *testing.T) {
	t.Setenv("EXPAND_TEST", "value")
	login := &LoginConfig{Scopes: []string{"a", "{env.EXPAND_TEST}"}, Params: map[string]string{"claims": `{"userinfo":{"email":null}}`, "audience": "x-{env.EXPAND_TEST}"}, ClientSecret: "{env.NOT_SET_IN_TEST}"}
	shared := login.Params
	app := &App{Login: map[string]*LoginConfig{"corp": login}, ProblemTypes: "https://{env.EXPAND_TEST}/"}
	if err := expandAll(app); err != nil {
		t.Fatal(err)
	}
	if app.ProblemTypes != "https://value/" || login.Scopes[1] != "value" || login.Params["audience"] != "x-value" {
		t.Errorf("%+v, %+v", app.ProblemTypes, login)
	}
	if shared["claims"] != `{"userinfo":{"email":null}}` || login.ClientSecret != "{env.NOT_SET_IN_TEST}" {
		t.Errorf("%+v: JSON, and secrets, stay as they are", login)
	}
	for name, h := range map[string]*Handler{
		"realm":                {Realm: "{env.NOT_SET_IN_TEST}"},
		"require_scopes":       {RequireScopes: []string{"a", "{http.request.host}"}},
		"identity_headers map": {IdentityHeaders: &IdentityHeaders{Map: map[string]string{"X-User": "{nonsense}"}}},
	} {
		if err := expandAll(h); err == nil || !strings.HasPrefix(err.Error(), name) {
			t.Errorf("%s: %v", name, err)
		}
	}
}
