/* What the page does in the browser alone: it keeps the conversation if it is asked to, reads
 * answers aloud, tells screen readers of a complete answer, and names what Gradio leaves nameless.
 * events.py calls `window.phisense`; without this file the page asks and answers all the same.
 */
window.phisense = (() => {
  'use strict'
  const KEEP = 'phisense.keep', KEPT = 'phisense.kept'  // in localStorage: "1"; {text, picture}
  const LONGEST_SIDE = 1024  // pixels of the copy of the picture
  const JPEG = /^data:image\/jpeg;base64,[A-Za-z0-9+/=]+$/
  const all = (selector) => document.querySelectorAll(selector)

  // ---- the browser's own storage; null where it is switched off, or full of others' things
  const storage = (() => {
    try {
      localStorage.setItem('phisense.tried', '1')
      localStorage.removeItem('phisense.tried')
      return localStorage
    } catch { return null }
  })()
  const keeps = () => storage?.getItem(KEEP) === '1'

  /** A copy of the picture that is shown, as a data URL; null if there is none. */
  function copyPicture() {
    const shown = document.querySelector('#picture img')
    if (!shown?.naturalWidth) return null
    const scale = Math.min(1, LONGEST_SIDE / Math.max(shown.naturalWidth, shown.naturalHeight))
    const canvas = document.createElement('canvas')
    canvas.width = Math.max(1, Math.round(shown.naturalWidth * scale))
    canvas.height = Math.max(1, Math.round(shown.naturalHeight * scale))
    const pen = canvas.getContext('2d')
    pen.fillStyle = 'white'  // what is transparent is white to the model, too
    pen.fillRect(0, 0, canvas.width, canvas.height)
    pen.drawImage(shown, 0, 0, canvas.width, canvas.height)
    return canvas.toDataURL('image/jpeg', 0.92)
  }

  /** Keep the conversation `text`, which the server understands again; none if it is empty. */
  function save(text) {
    if (!keeps()) return
    if (!text) return storage.removeItem(KEPT)
    for (const picture of [copyPicture(), null]) {  // without the picture if there is no room
      try {
        return storage.setItem(KEPT, JSON.stringify({text, picture}))
      } catch { storage.removeItem(KEPT) }
    }
    announce('This browser has no room to keep the conversation.')
  }

  function remove() {
    storage?.removeItem(KEEP)
    storage?.removeItem(KEPT)
    announce('Nothing is kept in this browser any more.')
  }

  function keep(on, text) {
    if (!on || !storage) return remove()
    storage.setItem(KEEP, '1')
    save(text)
    announce('The conversation is kept in this browser.')
  }

  /** Upload the kept picture, as a visitor would; null if there is none, or it is refused. */
  async function upload(picture) {
    if (!JPEG.test(picture ?? '')) return null
    const body = new FormData()
    body.append('files', await (await fetch(picture)).blob(), 'kept.jpg')
    const root = window.gradio_config?.root ?? ''
    const answer = await fetch(`${root}/gradio_api/upload`, {method: 'POST', body})
    if (!answer.ok) return null
    const [path] = await answer.json()
    return {path, url: `${root}/gradio_api/file=${path}`, orig_name: 'kept.jpg',
            mime_type: 'image/jpeg', meta: {_type: 'gradio.FileData'}}
  }

  /** After a reload: whether something is kept, its picture, and its text for the server. */
  async function load() {
    if (!keeps()) return [false, null, '']
    let kept = {}
    try { kept = JSON.parse(storage.getItem(KEPT)) ?? {} } catch { storage.removeItem(KEPT) }
    if (typeof kept.text !== 'string' || !kept.text) return [true, null, '']
    return [true, await upload(kept.picture).catch(() => null), kept.text]
  }

  // ---- the last answer: said by the browser's voice, or by a screen reader
  const lastAnswer = () => [...all('#conversation [data-testid=bot]')].at(-1)?.innerText.trim() ?? ''

  function announce(text) {
    const region = document.getElementById('announced')
    if (region) region.textContent = text
  }

  /** An answer is complete. Gradio's own log would be read anew at each word of it. */
  function answered() { setTimeout(() => announce(lastAnswer()), 100) }

  const SCRIPTS = [['ja', /[\u3040-\u30ff]/], ['zh', /[\u4e00-\u9fff]/], ['ko', /[\uac00-\ud7af]/],
    ['ru', /[\u0400-\u04ff]/], ['ar', /[\u0600-\u06ff]/], ['he', /[\u0590-\u05ff]/],
    ['el', /[\u0370-\u03ff]/], ['hi', /[\u0900-\u097f]/], ['th', /[\u0e00-\u0e7f]/]]
  const languageOf = (text) => SCRIPTS.find(([, letters]) => letters.test(text))?.[0]
    ?? (document.documentElement.lang || 'en')

  /** Read the last answer aloud, or stop reading. */
  function read() {
    const button = document.getElementById('read'), voice = window.speechSynthesis
    const done = () => button.setAttribute('aria-pressed', 'false')
    const reading = button.getAttribute('aria-pressed') === 'true'
    voice.cancel()
    done()
    const text = reading ? '' : lastAnswer()
    // sentence by sentence: some browsers fall silent in a long text
    const parts = (text.match(/[^\n]+?(?:[.!?](?=\s|$)|[\u3002\uff01\uff1f]|\n|$)/g) ?? [])
      .map((part) => part.trim()).filter(Boolean)
    parts.forEach((part, index) => {
      const said = new SpeechSynthesisUtterance(part)
      said.lang = languageOf(text)
      if (index === parts.length - 1) said.onend = done
      said.onerror = done
      voice.speak(said)
    })
    if (parts.length) button.setAttribute('aria-pressed', 'true')
  }

  /** A Markdown file of the conversation, made here. */
  function download(messages) {
    const parts = (content) => content.map((part) => part.text ?? '').join('')
    const said = (m) => typeof m.content === 'string' ? m.content : parts(m.content)
    const line = (m) => `**${m.role === 'user' ? 'You' : 'Model'}:** ${said(m)}`
    const text = messages.map(line).join('\n\n') + '\n'
    const link = document.createElement('a')
    link.href = URL.createObjectURL(new Blob([text], {type: 'text/markdown'}))
    link.download = 'conversation.md'
    link.click()
    URL.revokeObjectURL(link.href)
  }

  // ---- names and states that Gradio's components lack
  const NAMES = [
    ['#picture .image-frame img', 'alt', 'Your picture'],
    ['#looked .image-frame img', 'alt', 'The picture, bright where the last answer looked'],
    ['#looked button:has(> .image-frame)', 'aria-label', 'Where the last answer looked'],
    ['#conversation textarea', 'aria-label', 'The question, to be changed'],
    ['#conversation [role=log]', 'aria-live', 'off'],  // `answered` tells of complete answers
    ['#settings .label-wrap.open', 'aria-expanded', 'true'],
    ['#settings .label-wrap:not(.open)', 'aria-expanded', 'false'],
    ['#read:not([aria-pressed])', 'aria-pressed', 'false'],
    // a button that holds another: the inner one closes the notice, which is enough
    ['.toast-header[role=button]', 'role', null],
    ['.toast-header[tabindex]', 'tabindex', null],
  ]
  function name() {
    for (const [selector, attribute, value] of NAMES) {
      for (const found of all(selector)) {
        if (value === null) found.removeAttribute(attribute)
        else if (found.getAttribute(attribute) !== value) found.setAttribute(attribute, value)
      }
    }
  }

  /** Gradio counts "0.4s"; below a second the page says milliseconds. */
  function tellMilliseconds() {
    for (const shown of all('.progress-text')) {
      for (const node of shown.childNodes) {
        if (node.nodeType !== Node.TEXT_NODE) continue
        const found = /^(\s*)0\.(\d)(?:\/(\d+\.\d))?s\s*$/.exec(node.data)
        const of = found?.[3] ? ` of ${found[3] < 1 ? `${found[3] * 1000} ms` : `${found[3]} s`}` : ''
        if (found) node.data = `${found[1]}${found[2] * 100} ms${of}`
      }
    }
  }

  function start() {
    const region = document.createElement('div')
    region.id = 'announced'
    region.setAttribute('role', 'status')
    document.body.append(region)
    document.documentElement.classList.toggle('speaks', 'speechSynthesis' in window)
    document.documentElement.classList.toggle('keeps', storage !== null)
    let due = false
    new MutationObserver(() => {
      tellMilliseconds()  // before it is painted
      if (due) return
      due = true
      requestAnimationFrame(() => { due = false; name() })
    }).observe(document.body, {subtree: true, childList: true, characterData: true,
                               attributes: true, attributeFilter: ['class']})
    addEventListener('pagehide', () => window.speechSynthesis?.cancel())
  }
  if (document.body) start()
  else addEventListener('DOMContentLoaded', start)

  return {save, keep, remove, load, read, answered, download}
})()
