// A certified OpenID provider on 127.0.0.1 where people log in: any name, any
// password, and a consent. Its pages are its own. Access tokens live for seconds,
// refresh tokens rotate. Usage: node login-provider.mjs PORT ORIGIN SECONDS
import { generateKeyPair, exportJWK } from 'jose'
import Provider from 'oidc-provider'

const port = Number(process.argv[2])
const origin = process.argv[3]
const issuer = `http://127.0.0.1:${port}`
process.env.NODE_TLS_REJECT_UNAUTHORIZED = '0' // the gateway's certificate is its own

const { privateKey } = await generateKeyPair('ES256', { extractable: true })

const provider = new Provider(issuer, {
  jwks: { keys: [{ ...(await exportJWK(privateKey)), alg: 'ES256', use: 'sig', kid: `es-${process.pid}` }] },
  clients: [{
    client_id: 'gw',
    client_secret: 'login secret: %&+',
    redirect_uris: [`${origin}/auth/callback`],
    post_logout_redirect_uris: [`${origin}/auth/logout`],
    backchannel_logout_uri: `${origin}/auth/backchannel-logout`,
    backchannel_logout_session_required: true,
    grant_types: ['authorization_code', 'refresh_token'],
    response_types: ['code'],
    id_token_signed_response_alg: 'ES256',
  }],
  cookies: { keys: ['x'] },
  pkce: { required: () => true },
  issueRefreshToken: async () => true,
  rotateRefreshToken: () => true,
  ttl: { AccessToken: Number(process.argv[4]), IdToken: 600, RefreshToken: 3600, Session: 3600, Grant: 3600, Interaction: 600 },
  enabledJWA: { idTokenSigningAlgValues: ['ES256'] },
  fetch: (url, options) => { // to this machine, which it would not ask otherwise
    delete options.dispatcher
    return fetch(url, options)
  },
  features: { revocation: { enabled: true }, backchannelLogout: { enabled: true }, rpInitiatedLogout: { enabled: true }, introspection: { enabled: true } },
})
provider.on('server_error', (ctx, err) => console.error(err))
provider.on('backchannel.error', (ctx, err) => console.error('backchannel', err))
provider.listen(port, '127.0.0.1', () => console.log(issuer))
