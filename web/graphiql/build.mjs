// Bundles the page: `node build.mjs OUT` writes what the hub embeds, each file also gzipped. A name
// has its content's hash in it, so that a browser may keep it for ever; only the page has not.
import { mkdirSync, readFileSync, readdirSync, rmSync, writeFileSync } from 'node:fs';
import { basename, join } from 'node:path';
import { gzipSync } from 'node:zlib';

import { build } from 'esbuild';

const out = process.argv[2];
const shared = {
  bundle: true,
  minify: true,
  format: 'esm',
  target: 'es2022',
  outdir: out,
  entryNames: '[name]-[hash]',
  assetNames: '[name]-[hash]',
  loader: { '.ttf': 'file' },
  publicPath: '/graphiql',
  legalComments: 'eof',
  define: { 'process.env.NODE_ENV': '"production"' },
  logLevel: 'warning',
  metafile: true,
};

rmSync(out, { recursive: true, force: true });
mkdirSync(out, { recursive: true });

// Worker scripts of the classic kind, as browsers start those everywhere.
const workers = await build({
  ...shared,
  format: 'iife',
  entryPoints: {
    json: 'monaco-editor/esm/vs/language/json/json.worker.js',
    graphql: 'monaco-graphql/esm/graphql.worker.js',
    editor: 'monaco-editor/esm/vs/editor/editor.worker.js',
  },
});
const address = (result, suffix) =>
  `/graphiql/${basename(Object.keys(result.metafile.outputs).find((name) => suffix.test(name)))}`;
const worker = (name) => JSON.stringify(address(workers, new RegExp(`/${name}-[^/]*\\.js$`)));

const page = await build({
  ...shared,
  jsx: 'automatic',
  entryPoints: ['page.jsx'],
  define: {
    ...shared.define,
    JSON_WORKER: worker('json'),
    GRAPHQL_WORKER: worker('graphql'),
    EDITOR_WORKER: worker('editor'),
  },
});
const html = readFileSync('page.html', 'utf8')
  .replace('STYLE', address(page, /page-[^/]*\.css$/))
  .replace('SCRIPT', address(page, /page-[^/]*\.js$/));
writeFileSync(join(out, 'page.html'), html);

for (const name of readdirSync(out)) {
  writeFileSync(join(out, `${name}.gz`), gzipSync(readFileSync(join(out, name)), { level: 9 }));
}
