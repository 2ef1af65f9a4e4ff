// Who is calling, as the gateway says: checks X-Auth-Assertion with jose.
//
//   npm install jose
//   import { Gateway } from './assertion.mjs'
//   const gateway = new Gateway({ keysURL: 'https://api.example.com/.well-known/jwks.json', audience: 'orders' })
//   const caller = await gateway.identify(request)   // node's http.IncomingMessage, or Express' request
import { createLocalJWKSet, createRemoteJWKSet, errors, jwtVerify } from 'jose'

/** The request did not come through the gateway, or what it says is not true. Answer 401. */
export class Refused extends Error {}
/** The gateway's keys can't be had, so nobody can tell. Answer 503. */
export class Unavailable extends Error {}

export class Gateway {
  /** keysURL or keySet, and audience, are required; issuer is compared if it is given. now is for tests. */
  constructor({ keysURL, keySet, audience, issuer, header = 'x-auth-assertion', now }) {
    if (!audience || !keysURL === !keySet) throw new TypeError('want an audience, and keysURL or keySet')
    this.keys = keySet ? createLocalJWKSet(keySet) : createRemoteJWKSet(new URL(keysURL))
    Object.assign(this, { audience, issuer, header, now })
  }

  /** Returns the claims of the request's assertion, or throws Refused or Unavailable. */
  async identify(request) {
    const values = request.headersDistinct[this.header] ?? []
    if (values.length !== 1) throw new Refused(values.length ? 'more than one assertion' : 'no assertion')
    const path = (request.originalUrl ?? request.url).split('?', 1)[0] // as it was sent, whatever a router made of it
    return this.verify(values[0], request.method, path)
  }

  async verify(token, method, path) {
    if (token.length > 16384) throw new Refused('not an assertion')
    let claims
    try {
      ({ payload: claims } = await jwtVerify(token, this.keyOf, {
        algorithms: ['EdDSA', 'ES256'],
        typ: 'caddy-auth-assertion+jwt', // a token for another purpose is no assertion
        audience: this.audience,
        issuer: this.issuer,
        requiredClaims: ['exp', 'sub', 'htm', 'path'],
        clockTolerance: 5,
        currentDate: this.now?.(),
      }))
    } catch (error) {
      const empty = error.code === 'ERR_JWKS_NO_MATCHING_KEY' && !this.keys.jwks?.()?.keys.length
      const answered = error instanceof errors.JOSEError && !empty && !['ERR_JWKS_TIMEOUT', 'ERR_JWKS_INVALID', 'ERR_JOSE_GENERIC'].includes(error.code)
      throw answered ? new Refused(error.message) : new Unavailable(error.message)
    }
    if (claims.htm !== method || claims.path !== path) throw new Refused('for another method or path')
    if (typeof claims.sub !== 'string' || claims.sub === '') throw new Refused('no subject')
    return claims
  }

  keyOf = (header, token) => {
    if (typeof header.kid !== 'string' || header.kid === '') throw new errors.JWKSNoMatchingKey()
    return this.keys(header, token)
  }
}
