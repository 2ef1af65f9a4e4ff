// A client of an API behind the gateway, with oauth4webapi and a signed
// assertion instead of a secret (private_key_jwt). It does what lines on
// standard input say: "call" calls the API, "revoke" ends the token.
//
//   ISSUER=https://api.example.com API_URL=https://api.example.com/orders CLIENT_ID=client_… PRIVATE_KEY=key.pem node oauth4webapi.mjs
//
// The client was made with the public key: caddy-auth client create --owner acme --jwks keys.json
import { createPrivateKey, webcrypto } from 'node:crypto'
import { readFileSync } from 'node:fs'
import { createInterface } from 'node:readline'
import * as oauth from 'oauth4webapi'

const { ISSUER, API_URL, CLIENT_ID, PRIVATE_KEY } = process.env
const insecure = { [oauth.allowInsecureRequests]: ISSUER.startsWith('http://') } // for tests on loopback only
const issuer = new URL(ISSUER)
const discovered = await oauth.discoveryRequest(issuer, { algorithm: 'oauth2', ...insecure })
const server = await oauth.processDiscoveryResponse(issuer, discovered)
const client = { client_id: CLIENT_ID }
const pkcs8 = createPrivateKey(readFileSync(PRIVATE_KEY)).export({ type: 'pkcs8', format: 'der' })
const key = await webcrypto.subtle.importKey('pkcs8', pkcs8, { name: 'ECDSA', namedCurve: 'P-256' }, false, ['sign'])
const prove = oauth.PrivateKeyJwt(key)

let token, until = 0
async function fresh() {
  if (Date.now() > until) {
    const response = await oauth.clientCredentialsGrantRequest(server, client, prove, {}, insecure)
    token = await oauth.processClientCredentialsResponse(server, client, response)
    until = Date.now() + (token.expires_in - 5) * 1000
  }
  return token.access_token
}

async function call() {
  for (let tries = 1; ; tries++) {
    const bearer = await fresh()
    try {
      const response = await oauth.protectedResourceRequest(bearer, 'GET', new URL(API_URL), undefined, undefined, insecure)
      await response.arrayBuffer()
      return { status: response.status, tries }
    } catch (error) {
      if (!(error instanceof oauth.WWWAuthenticateChallengeError)) throw error
      if (tries === 2) return { status: error.status, tries }
      until = 0 // it was ended early: get another, once
    }
  }
}

async function revoke() {
  await oauth.processRevocationResponse(await oauth.revocationRequest(server, client, prove, await fresh(), insecure))
  return { status: 200 }
}

for await (const line of createInterface({ input: process.stdin })) {
  let answer
  try {
    answer = await { call, revoke }[line]()
  } catch (error) {
    // A 401 comes with a challenge, which the library tells instead of the body.
    answer = { error: error.error ?? (error instanceof oauth.WWWAuthenticateChallengeError ? 'invalid_client' : error.message) }
  }
  console.log(JSON.stringify(answer))
}
