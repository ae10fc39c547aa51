// The page of a run.

import "./theme.css";
import "./viewer.css";
import { h, render } from "preact";
import { App } from "./app";
import { Store } from "./store";

const page = document.getElementById("page")!;
Store.open().then(
  (store) => render(h(App, { store }), page),
  (error) => (page.textContent = `This page cannot be shown: ${error}`),
);
