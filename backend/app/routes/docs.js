
// Follows swagger-ui-bundle.js (decision 43). A click unfolds headers, and replies other than a success.
{
    // The links to the guides are relative to /docs. At /docs/ they would lead to another directory.
    const page = new URL(location)
    page.pathname = page.pathname.replace(/\/+$/, "")
    history.replaceState(null, "", page)

    const bundle = SwaggerUIBundle
    const fold = ({ React: { createElement: element } }) => {
        const details = (title, content) => element("details", null, element("summary", null, title), content)
        const table = (row) => element("table", null, element("tbody", null, row))
        return {
            wrapComponents: {
                headers: (Headers) => (props) =>
                    props.headers?.size > 0 &&
                    details("Headers: " + props.headers.keySeq().join(", "), element(Headers, props)),
                response: (Response) => (props) => {
                    const response = element(Response, props)
                    const title = `${props.code} ${props.response.get("description")}`
                    return props.code < "300"
                        ? response
                        : element("tr", null, element("td", { colSpan: 3 }, details(title, table(response))))
                },
            },
        }
    }
    // An OpenAPI document orders by path. Here DELETE is the last operation.
    const operationsSorter = (a, b) => (a.get("method") === "delete") - (b.get("method") === "delete")
    const build = (options) => bundle({ operationsSorter, ...options, presets: [...options.presets, fold] })
    SwaggerUIBundle = Object.assign(build, bundle)
}
