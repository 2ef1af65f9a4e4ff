// A client of an API behind the gateway, with openid-client. It does what lines
// on standard input say: "call" calls the API, "revoke" ends the token.
//
//   ISSUER=https://api.example.com API_URL=https://api.example.com/orders CLIENT_ID=client_… CLIENT_SECRET=ca_cs_… node openid-client.mjs
import { createInterface } from 'node:readline'
import * as client from 'openid-client'

const { ISSUER, API_URL, CLIENT_ID, CLIENT_SECRET } = process.env
const config = await client.discovery(new URL(ISSUER), CLIENT_ID, undefined, client.ClientSecretBasic(CLIENT_SECRET), {
  algorithm: 'oauth2', // RFC 8414
  execute: ISSUER.startsWith('http://') ? [client.allowInsecureRequests] : [], // for tests on loopback only
})

let token, until = 0
async function fresh() {
  if (Date.now() > until) {
    token = await client.clientCredentialsGrant(config)
    until = Date.now() + (token.expires_in - 5) * 1000
  }
  return token.access_token
}

async function call() {
  for (let tries = 1; ; tries++) {
    const response = await fetch(API_URL, { headers: { authorization: `Bearer ${await fresh()}` } })
    await response.arrayBuffer()
    if (response.status !== 401 || tries === 2) return { status: response.status, tries }
    until = 0 // it was ended early: get another, once
  }
}

async function revoke() {
  await client.tokenRevocation(config, await fresh())
  return { status: 200 }
}

for await (const line of createInterface({ input: process.stdin })) {
  let answer
  try {
    answer = await { call, revoke }[line]()
  } catch (error) {
    // A 401 comes with a challenge, which the library tells instead of the body.
    answer = { error: error.error ?? (error instanceof client.WWWAuthenticateChallengeError ? 'invalid_client' : error.message) }
  }
  console.log(JSON.stringify(answer))
}
